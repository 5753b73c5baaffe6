"""Headers read the fast way are those that the standard library reads."""

from __future__ import annotations

import io
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from pipeline.reading.tar_header import PlainFileInfo

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=140)
MEMBERS = st.lists(
    st.tuples(
        NAMES,
        st.integers(0, 1500),
        st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE]),
    ),
    max_size=5,
)
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def members(data: bytes, kind: type[tarfile.TarInfo]) -> list[tuple[object, ...]] | str:
    """What indexing uses of each member; or how reading failed."""
    found: list[tuple[object, ...]] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", tarinfo=kind) as archive:
            for info in archive:
                found.append((info.name, info.size, info.isreg(), info.isdir(), info.offset, info.offset_data))
    except (tarfile.TarError, OSError, EOFError) as error:
        return type(error).__name__
    return found


def packed(entries: list[tuple[str, int, bytes]], form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, size, kind in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.size = size if info.isreg() else 0
            try:
                archive.addfile(info, io.BytesIO(b"x" * info.size))
            except ValueError:
                # The oldest format holds no such name.
                continue
    return file.getvalue()


@given(entries=MEMBERS, form=FORMATS)
def test_every_kind_of_member_is_read_as_the_standard_library_reads_it(
    entries: list[tuple[str, int, bytes]], form: int
):
    data = packed(entries, form)
    assert members(data, PlainFileInfo) == members(data, tarfile.TarInfo)


@given(at=st.integers(0, 511), value=st.integers(0, 255), header=st.integers(0, 2))
def test_a_header_with_a_wrong_byte_is_refused_as_the_standard_library_refuses_it(at: int, value: int, header: int):
    data = bytearray(packed([(f"{n}.jpg", 100, tarfile.REGTYPE) for n in range(3)], tarfile.USTAR_FORMAT))
    data[header * 1024 + at] = value
    assert members(bytes(data), PlainFileInfo) == members(bytes(data), tarfile.TarInfo)


def test_a_size_above_eight_gigabytes_is_read():
    """It does not fit octal digits; GNU writes it in binary."""
    info = tarfile.TarInfo("0.jpg")
    info.size = 1 << 40
    header = info.tobuf(tarfile.GNU_FORMAT)
    assert PlainFileInfo.frombuf(header, "utf-8", "surrogateescape").size == 1 << 40
