"""Photos that lie elsewhere than in folders of this machine: by URI, and in tables; and how their names are kept."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runtime import classify
from runtime.bulk.places import located, saying
from runtime.errors import SajiError
from runtime.files import as_text, left_by_programs
from runtime.preprocess import SUFFIXES

NAME, CONTENT = "path", "bytes"  # as Ray Data calls the columns of files that it reads


class Names(set[bytes]):
    """Names of photos that have a row, or are about to, as 16 bytes each."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(digest(name))

    def noted(self, name: str) -> str:
        """Add one, and give it back."""
        self.add(digest(name))
        return name


def digest(name: Any) -> bytes:
    """What stands for a name, 16 bytes."""
    return hashlib.blake2b(as_text(name).encode(), digest_size=16).digest()


class Everywhere(classify.Photos):
    """Photos in folders and lists, as `classify` finds them, by URI, and by the names in files of Parquet.

    `tables` are the files of Parquet that hold the photos themselves, which are not iterated over. Raises SajiError for
    a name of theirs that another photo has.
    """

    def __init__(self, places: Sequence[str], say: classify.Say, done: Names) -> None:
        self.tables = [place for place in places if place.endswith(".parquet") and CONTENT in table(place).schema.names]
        super().__init__([place for place in places if place not in self.tables], say, done)
        self.inside = Names()
        for name in itertools.chain.from_iterable(map(_names, self.tables)):
            self.inside.noted(self._only(name))

    def _only(self, name: str) -> str:
        if name in self.inside:
            raise SajiError(f"a second photo is called {name}, as one in a table; rows are told apart by these names")
        return name

    def _in(self, place: str) -> Iterator[str]:
        return map(self._only, self._found(place))

    def _found(self, place: str) -> Iterator[str]:
        if place.endswith(".parquet"):
            return _names(place)
        place = place.removeprefix("file://")  # whose names may be no text, as only a folder's can
        return self._by_uri(place.rstrip("/")) if "://" in place else super()._in(place)

    def _by_uri(self, place: str) -> Iterator[str]:
        from pyarrow.fs import FileSelector, FileType

        files, root = located(place)

        def asked(what: Any) -> Any:
            with saying(f"{place} cannot be read; check its name, and what the environment says of who asks"):
                return files.get_file_info(what)

        if asked(root).type != FileType.Directory:
            yield place
            return
        folders, found = [root], False
        while folders:
            infos = sorted(asked(FileSelector(folders.pop())), key=lambda info: info.base_name)
            infos = [info for info in infos if not left_by_programs(info.base_name)]
            folders += [info.path for info in reversed(infos) if info.type == FileType.Directory]
            for name in (info.path for info in infos if info.type == FileType.File):
                if Path(name).suffix.lower() in SUFFIXES:
                    found = True
                    yield place + name[len(root) :]
                else:
                    self.left_alone += 1
        if not found:
            raise SajiError(f"{place} holds no photo; photos end with .jpg, .png, .webp, .heic …")


def table(place: str) -> Any:
    """A file or folder of Parquet, unread, as a dataset of pyarrow. Raises SajiError where it is none of photos."""
    import pyarrow as pa
    import pyarrow.dataset

    files, path = located(place)
    with saying(f"{place} is no file of Parquet that can be read"):
        found = pyarrow.dataset.dataset(path, filesystem=files, format="parquet")
    kinds = dict(zip(found.schema.names, found.schema.types, strict=True))
    text, binary = (pa.string(), pa.large_string()), (pa.binary(), pa.large_binary())
    if kinds.get(NAME) not in text or kinds.get(CONTENT, binary[0]) not in binary:
        columns = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise SajiError(
            f"{place} has {columns}; it needs the photos' names as text in {NAME}, or also {CONTENT} (binary)"
        )
    return found


def _names(place: str) -> Iterator[str]:
    with saying(f"{place} is no file of Parquet that can be read"):
        for batch in table(place).to_batches(columns=[NAME]):
            if batch[NAME].null_count:
                raise SajiError(f"{place} has a row without a name in {NAME}; rows are told apart by these")
            yield from batch[NAME].to_pylist()
