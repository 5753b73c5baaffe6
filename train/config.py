"""What a training run is made of, as a file: every number one may want to change is a key here.

Paths are relative to where the command runs, as on any command line. Defaults are those of the paper where it gives
one (section 4.1, Table 8) and of the embedded default where it does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from configs.load import Config, StoredPath
from shards.windows import SHARDS_PER_WINDOW
from train.watch_config import GuardsConfig, LogConfig, ProfileConfig, ValidationConfig


class MixtureConfig(Config):
    """A file in ``configs/mixtures/``."""

    shares: dict[str, float]
    """Dataset -> part of all rows; they sum to 1."""

    paths: dict[str, StoredPath] = {}
    """Datasets whose folder is not ``data/<dataset>``; ``s3://`` and ``gs://`` are folders, too."""


class ModelConfig(Config):
    """Shape of a LLaMA backbone that is made anew. A run that starts from a folder takes the folder's shape; sizes given
    here are then what is expected there, and what is planned with before the folder is.
    """

    hidden_size: PositiveInt = 256
    num_layers: PositiveInt = 4
    num_heads: PositiveInt = 4
    num_key_value_heads: PositiveInt | None = None
    """None: as many as heads."""

    intermediate_size: PositiveInt = 704
    rope_theta: PositiveFloat = 10_000.0
    rms_norm_eps: PositiveFloat = 1e-5
    initializer_range: PositiveFloat = 0.02
    tie_embeddings: bool = False
    """One matrix for input and output embedding; the paper, like LLaMA-2, has two."""

    max_position_embeddings: PositiveInt | None = None
    """None: the row length of the data."""

    pad_vocabulary_to: PositiveInt = 1
    """Rows of embedding and head are a multiple of this (64 or 128 suit a GPU), also when a run starts from a folder.
    Rows beyond the vocabulary are zero, no target, and not exported."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        key_value_heads = self.num_key_value_heads or self.num_heads
        if self.hidden_size % self.num_heads or self.num_heads % key_value_heads:
            raise ValueError(
                f"expected hidden_size to be a multiple of num_heads, and that of num_key_value_heads, found "
                f"{self.hidden_size}, {self.num_heads}, {key_value_heads}"
            )
        if (self.hidden_size // self.num_heads) % 2:
            raise ValueError("expected an even number of dimensions a head (rotary embeddings turn pairs)")
        return self


class SoundStormConfig(Config):
    """Sizes of SoundStorm's network (:mod:`train.soundstorm`); the defaults are those of the published one."""

    dim: PositiveInt = 1024
    depth: PositiveInt = 12
    heads: PositiveInt = 8
    head_dim: PositiveInt = 128
    ff_mult: PositiveInt = 4
    conv_expansion: PositiveInt = 2
    conv_kernel: PositiveInt = 31
    num_quantizers: PositiveInt = 7
    """Levels that are predicted: all but the first."""

    codebook_size: PositiveInt = 1024
    num_semantic: PositiveInt = 1024
    """Codes of the first level."""

    rotary_theta: PositiveFloat = 10_000.0
    initializer_range: PositiveFloat = Field(default=0.02)
    """Standard deviation of embeddings and weights before training."""

    @property
    def mask_id(self) -> int:
        """The code that stands for one not known yet."""
        return self.codebook_size

    @property
    def num_parameters(self) -> int:
        """Embeddings and heads included."""
        dim, levels, codes = self.dim, self.num_quantizers, self.codebook_size
        inner, wide, channels = self.heads * self.head_dim, self.ff_mult * self.dim, self.conv_expansion * self.dim
        feed_forward = 2 * dim + 2 * dim * wide + wide + dim
        attention = 2 * dim + 4 * dim * inner + dim
        convolution = 2 * dim + 3 * dim * channels + channels * (self.conv_kernel + 4) + dim
        block = 2 * feed_forward + attention + convolution + 2 * dim
        embeddings = self.num_semantic * dim + levels * (codes + 1) * dim
        heads = levels * (dim * dim + dim) + 2 * dim + levels * (dim * codes + codes)
        return embeddings + self.depth * block + heads

    @model_validator(mode="after")
    def _halves_and_middles(self) -> Self:
        if self.head_dim % 2:
            raise ValueError(f"expected an even head_dim (rotary positions turn pairs), found {self.head_dim}")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"expected an odd conv_kernel (as many frames before as after), found {self.conv_kernel}")
        return self


class InitConfig(Config, populate_by_name=True):
    """Where the weights come from."""

    folder: Path | None = Field(default=None, alias="from")
    """A LLaMA-shape Hugging Face folder: LLaMA-2-7B, or ``checkpoints/final`` of another run. None: random."""

    new_embeddings: Literal["random", "mean"] = "random"
    """How rows beyond the folder's vocabulary begin: as in the paper, or around the mean of the old ones."""


class LoraConfig(Config):
    """Low-rank adapters instead of all weights (Hu et al. 2021, arXiv:2106.09685), with the library peft."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    """What an adapter adds is scaled by alpha / rank."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of an adapter's input; drawn from the seed and the ids of the rows."""

    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Last parts of the names of the linear layers that get one."""

    train_embeddings: bool = False
    """Train embedding and head, too, whole: needed where the vocabulary grows, as nobody trained the new rows."""

    export: Literal["merged", "adapter"] = "merged"
    """A whole model; or what peft loads on top of ``init.from``."""


class OptimizerConfig(Config):
    """AdamW with a global norm clip."""

    lr: PositiveFloat = 6e-5
    """Peak."""

    betas: tuple[NonNegativeFloat, NonNegativeFloat] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    clip: PositiveFloat = 1.0


class ScheduleConfig(Config):
    """Cosine with a linear warm-up; see :mod:`train.schedule`."""

    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Part of all steps."""

    final_lr: NonNegativeFloat = 0.0
    """Learning rate of the last step."""


class EngineConfig(Config):
    """How the arithmetic is done. Nothing here changes what is learnt, beyond rounding."""

    kind: Literal["deepspeed", "torch"] = "deepspeed"
    zero: Literal[1, 2, 3] = 2
    dtype: Literal["bf16", "fp32"] = "bf16"
    micro_batch_rows: PositiveInt | None = None
    """Rows of one forward pass on one process; None: its whole part of the batch."""

    gradients: Literal["bf16", "fp32"] | None = None
    """In what the passes of a step are added up, where weights are bf16. None: what is cheap there, bf16 with DeepSpeed
    (whose sums are rounded after every pass), fp32 with torch. fp32 costs 4 bytes a parameter, over the processes."""

    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What stays in host memory: float32 masters and moments (any ZeRO stage; the update is then computed there, by
    torch, for DeepSpeed's own is compiled when it is first used); or the weights, too (ZeRO-3)."""

    reduce_bucket: PositiveInt = 100_000_000
    """DeepSpeed: gradients that are summed over processes at a time. Two such buffers of bf16 are held with
    ``overlap``, 400 MB in all; with its own default, five times as much, they are 2 GB."""

    gather_bucket: PositiveInt = 500_000_000
    """DeepSpeed: weights of an update that are sent at a time."""

    overlap: bool | None = None
    """DeepSpeed: sum gradients over processes while the backward pass goes on. None: on GPUs with more than one process;
    a CPU has no stream of its own for it."""

    prefetch_bucket: PositiveInt = 50_000_000
    """ZeRO-3: weights that are asked for ahead of their use."""

    persistent_below: NonNegativeInt = 100_000
    """ZeRO-3: parameters of fewer values stay whole on every process; the messages would cost more than they save."""

    max_live: PositiveInt = 1_000_000_000
    """ZeRO-3: weights that are gathered at one time."""

    attention_kernel: Literal["auto", "flash3", "flash2", "varlen", "flex", "buckets"] = "auto"
    """What computes documents apart (:mod:`train.attention_kernels`); auto: the first of these that is there."""

    cudnn_attention: bool = False
    """Rows as in the paper: prefer cuDNN's attention to FlashAttention-2; the faster one on Hopper."""

    activation_checkpointing: bool | Annotated[float, Field(ge=0, le=1)] = False
    """Compute the forward pass of layers again in the backward pass instead of keeping what it made: of all layers, of
    none, or of this part of them (0.5: every second)."""

    liger: bool = False
    """Triton kernels of the package liger-kernel for norms, rotary positions and the feed-forward part; GPUs only. The
    loss is ours either way: :mod:`train.loss` fuses head and cross entropy likewise."""

    compile: bool = False
    """torch.compile of every layer: a minute at the start, fewer and larger kernels afterwards. Not with ZeRO-3."""

    head_chunk: PositiveInt = 1024
    """Targets whose logits exist at one time."""

    threads: PositiveInt | None = None
    """CPU threads of a process; None: ``OMP_NUM_THREADS``, or the cores divided by the processes here."""

    @model_validator(mode="after")
    def _can_be_had_together(self) -> Self:
        plain, whole = self.kind == "torch", self.zero < 3
        if self.offload != "none" and plain:
            raise ValueError(f"expected offload = 'none' with kind 'torch', found {self.offload!r}; DeepSpeed offloads")
        if self.offload == "parameters" and whole:
            raise ValueError(
                f"expected zero = 3 with offload 'parameters', found {self.zero}; others keep weights whole"
            )
        if self.gradients == "fp32" and self.dtype == "bf16" and not plain and self.zero == 1:
            raise ValueError(
                "expected zero = 2 or 3 with gradients 'fp32', found 1, where DeepSpeed has another optimizer"
            )
        if self.gradients == "bf16" and self.dtype == "fp32":
            raise ValueError("expected gradients 'fp32' or none with dtype 'fp32', found 'bf16'")
        if self.compile and not plain and not whole:
            raise ValueError("expected zero = 1 or 2 with compile, found 3, which moves weights about between layers")
        return self


class CheckpointConfig(Config):
    """When the state of the run is written, and how many of these states are kept."""

    every: PositiveInt = 500
    keep: PositiveInt = 2
    """How many of the newest stay."""

    keep_every: PositiveInt | None = None
    """Checkpoints of steps that this number divides stay for good."""

    asynchronous: bool = True
    """Write beside the training, from a copy in host memory; False: the training waits."""

    on_signal: Literal["save", "die"] = "save"
    """On SIGTERM, SIGINT or SIGUSR1: finish the step, save and leave; or what the system does."""

    timeout_s: PositiveFloat = 1800.0
    """How long the first process waits for the files of the others."""


class ResumeConfig(Config):
    """What may differ from the run that is continued."""

    allow: tuple[str, ...] = ()
    """Fingerprints: ``mixture``, ``batch``, ``dataset NAME``, ``dataset`` for all of them, ``vocabulary``, ``model``."""

    verify: bool = True
    """Check every byte of a checkpoint before it is taken up, and take the one before it if some are wrong."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        known = ("vocabulary", "mixture", "model", "batch", "dataset")
        strange = [name for name in self.allow if name not in known and not name.startswith("dataset ")]
        if strange:
            raise ValueError(f"expected names among {', '.join(known)} or 'dataset NAME', found {strange}")
        return self


Check = Literal["files", "fingerprints", "disk", "memory", "processes", "clock"]


class PreflightConfig(Config):
    """What is looked at before the first step (:mod:`train.preflight`)."""

    skip: tuple[Check, ...] = ()
    """Checks that are left out."""


class TrainConfig(Config):
    """One run."""

    output: Path
    """Run folder: metrics.jsonl, config.json, checkpoints/, tensorboard/."""

    data: StoredPath
    """Folder of packed datasets, here or in an object store; the mixture's datasets are folders in it."""

    mixture: Path
    """A file in ``configs/mixtures/``."""

    steps: PositiveInt
    batch_rows: PositiveInt
    """Rows of a global batch, over all processes."""

    attention: Literal["row", "document"] = "document"
    """Whether documents of a row see each other, as in the paper, or not."""

    objective: Literal["language_model", "soundstorm"] = "language_model"
    """What is learnt: the next id of a row; or the hidden levels of speech (:mod:`train.masking`)."""

    seed: NonNegativeInt = 0
    verify: Literal["lazy", "open", "off"] = "lazy"
    """When checksums of shards are checked: on first touch, all at the start, never."""

    sequence_length: PositiveInt | None = None
    """Ids of a row, for a plan made before there is data, and checked against the data; None: that of the data."""

    vocabulary: Path | None = None
    """A file in ``configs/vocabulary/``, for a plan made before there is data; data brings its own."""

    cache_dir: Path | None = None
    """Where shards of remote datasets are kept, on a local disk; None: ``anygpt/shards`` in the user's cache folder."""

    cache_gib: PositiveFloat = 64.0
    """Of all files there; all processes of a machine share them."""

    shards_per_window: PositiveInt = SHARDS_PER_WINDOW
    """From how many files of a dataset rows are read by turns, where it is read through windows (:mod:`shards.windows`)."""

    windows: Literal["remote", "all"] = "remote"
    """Which datasets are read through windows. With ``all`` a run reads the same from a bucket and from a disk."""

    model: ModelConfig = ModelConfig()
    soundstorm: SoundStormConfig = SoundStormConfig()
    """Sizes, with ``objective = "soundstorm"``."""

    init: InitConfig = InitConfig()
    tokenizer: Path | None = None
    """Folder of the text tokenizer the data was packed with, extended and exported beside the model; None: ``init.from``."""

    lora: LoraConfig | None = None
    """Train adapters; ``[lora]`` alone takes the defaults. None: all weights."""

    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resume: ResumeConfig = ResumeConfig()
    preflight: PreflightConfig = PreflightConfig()
    log: LogConfig = LogConfig()
    validation: ValidationConfig = ValidationConfig()
    guards: GuardsConfig = GuardsConfig()
    profile: ProfileConfig | None = None
    """None: nothing is profiled."""

    @model_validator(mode="after")
    def _fits_the_objective(self) -> Self:
        if self.objective == "soundstorm":
            if self.engine.zero == 3 and self.engine.kind == "deepspeed":
                raise ValueError(
                    "expected engine.zero = 1 or 2 with objective 'soundstorm', found 3; it fits any GPU whole"
                )
            if self.init.folder is not None or self.engine.activation_checkpointing:
                raise ValueError(
                    "expected neither init.from nor engine.activation_checkpointing with objective 'soundstorm', which "
                    "begins anew and is small"
                )
        return self

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> Self:
        if self.lora is not None and (self.init.folder is None or self.objective != "language_model"):
            raise ValueError(
                "expected init.from, a language model, with [lora]; adapters are trained on top of a model that is there"
            )
        return self

    @property
    def name(self) -> str:
        """Of the run: the last part of its folder."""
        return self.output.name
