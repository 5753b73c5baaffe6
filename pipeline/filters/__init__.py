# For importers that still say `from pipeline.filters import ...`; empty once they name the module.
from pipeline.filters.apply import filter_decoded, filter_raw, measure
from pipeline.filters.config import DECODED_RULES, RAW_RULES, FilterConfig

__all__ = ["DECODED_RULES", "RAW_RULES", "FilterConfig", "filter_decoded", "filter_raw", "measure"]
