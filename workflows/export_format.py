"""What an export is made of: formats, what they lose, and the folder they are written to.

Knows nothing of the dataset, nor of any one format. A format turns one video at a time into files
and a part; parts become the files that speak of all videos once every video is done.

Where masks overlap and a format gives each pixel to one object, the object with the lowest id has
it (as SAM 2's own tools do); what the others lose is counted.
"""

import hashlib
import io
import json
import re
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import IO, Any, ClassVar
from urllib.parse import quote

from workflows.config import STRICT
from workflows.labelled_videos import LabelledVideo
from workflows.large_files import write_large
from workflows.storage import Storage
from workflows.uris import join_uri

NO_CATEGORY = "object"  # of a track that has none
LONGEST_FOLDER = 200  # characters; file systems allow 255 bytes with a suffix
PIECE_BYTES = 8 * 2**20


class ExportError(ValueError):
    """Labels that a format cannot hold, or options that contradict; what, got and wanted."""


@dataclass(slots=True)
class Account:
    """What went in and what did not come out; px are counted once for each mask.

    lost_px: set in the dataset, not in the export. added_px: the reverse.
    notes: further things lost, by what they are, with how many.
    """

    objects: int = 0
    frames: int = 0
    masks: int = 0  # not empty
    area_px: int = 0
    masks_lost: int = 0
    lost_px: int = 0
    added_px: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Account") -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "notes": dict(sorted(self.notes.items()))}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Account":
        return cls(**{**values, "notes": Counter(values["notes"])})


@dataclass(frozen=True, slots=True)
class VideoExport:
    """One video in a format. part: for the files about all videos, JSON values.

    labels: object_id → the number it has in the files, where that is another.
    """

    account: Account
    part: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FinishedVideo:
    """One video of a complete export, in order of video ids."""

    video_id: str
    folder: str
    part: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Common:
    """What all formats are told. categories: name → number from 1, the same for all videos."""

    categories: Mapping[str, int]
    every: int = 1  # write frames 0, every, 2·every …; their numbers stay
    split: str = "train"

    def category_number(self, category: str | None) -> int:
        return self.categories[category or NO_CATEGORY]


class Output:
    """The folder of an export, on disk or in an object store. written: paths put, in order."""

    def __init__(self, storage: Storage, root: str) -> None:
        self.storage = storage
        self.root = root
        self.written: list[str] = []

    def put(self, path: str, data: bytes) -> None:
        self.storage.put(join_uri(self.root, path), data)
        self.written.append(path)

    def put_json(self, path: str, value: Any) -> None:
        self.put(path, json.dumps(value, allow_nan=False).encode())

    def delete(self, path: str) -> None:
        self.storage.delete(join_uri(self.root, path))

    def read_json(self, path: str) -> Any:
        """Raises NotFound, naming the URI."""
        return json.loads(self.storage.read_bytes(join_uri(self.root, path)))

    @contextmanager
    def write_text(self, path: str) -> Iterator[IO[str]]:
        """A large file, written piece by piece; appears when the block ends without an error."""
        with write_large(self.storage, join_uri(self.root, path)) as spool:
            text = io.TextIOWrapper(spool, encoding="utf-8", write_through=True)
            yield text
            text.detach()
        self.written.append(path)


class ExportFormat(ABC):
    """One way to lay labels out in files; a frozen dataclass of its own options."""

    __pydantic_config__ = STRICT
    name: ClassVar[str]
    loses: ClassVar[str]  # what no export in this format can hold, in a sentence

    @abstractmethod
    def frame_path(self, folder: str, frame_index: int, common: Common) -> str:
        """Where the format's readers look for a picture, under the root."""

    @abstractmethod
    def write_video(
        self, video: LabelledVideo, folder: str, common: Common, output: Output
    ) -> VideoExport:
        """Put the files about one video. Raises ExportError if the format cannot hold it."""

    @abstractmethod
    def write_dataset(
        self, videos: Iterator[FinishedVideo], common: Common, output: Output
    ) -> None:
        """Put the files about all videos, if any; asked once every video is done."""


class JsonArrays:
    """A JSON object of long arrays, filled in any order without being held in memory."""

    def __init__(self, names: Sequence[str]) -> None:
        self._spools = {name: tempfile.TemporaryFile("w+", encoding="utf-8") for name in names}
        self._lengths: Counter[str] = Counter()

    def __enter__(self) -> "JsonArrays":
        return self

    def __exit__(self, *_: object) -> None:
        for spool in self._spools.values():
            spool.close()

    def append(self, name: str, value: Any) -> int:
        """The number of the value in its array, from 1."""
        if self._lengths[name]:
            self._spools[name].write(",\n")
        json.dump(value, self._spools[name], allow_nan=False)
        self._lengths[name] += 1
        return self._lengths[name]

    def length(self, name: str) -> int:
        return self._lengths[name]

    def write(self, sink: IO[str], **others: Any) -> None:
        """The whole object: `others` first, then the arrays."""
        sink.write("{\n")
        for name, value in others.items():
            sink.write(f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)},\n")
        for number, name in enumerate(self._spools):
            sink.write(",\n" if number else "")
            sink.write(f"{json.dumps(name)}: ")
            self.write_array(sink, name)
        sink.write("}\n")

    def write_array(self, sink: IO[str], name: str) -> None:
        """One of the arrays alone."""
        spool = self._spools[name]
        sink.write("[\n")
        spool.seek(0)
        while piece := spool.read(PIECE_BYTES):
            sink.write(piece)
        sink.write("\n]\n")


def folder_name(video_id: str) -> str:
    """A name for files of this video, unlike that of any other; the id itself where it is plain."""
    name = re.sub(r"^\.", "%2E", quote(video_id, safe=" "))
    if len(name) > LONGEST_FOLDER:
        name = (
            name[: LONGEST_FOLDER - 33] + "-" + hashlib.sha256(video_id.encode()).hexdigest()[:32]
        )
    return name


def count_masks(video: LabelledVideo, every: int) -> Account:
    """The account before anything is lost: what is there on the frames written.

    No format tells an object that is absent from one that nobody looked for: those are noted.
    """
    frame_indices = video.masks["frame_index"].to_numpy()
    areas = video.masks["area_px"].to_numpy()[frame_indices % every == 0]
    frames = -(-video.num_frames // every)
    account = Account(
        objects=len(video.tracks),
        frames=frames,
        masks=int((areas > 0).sum()),
        area_px=int(areas.sum()),
    )
    if unlabelled := frames * len(video.tracks) - len(areas):
        account.notes["object frames not labelled, written as absent"] = unlabelled
    return account


def categories_json(categories: Mapping[str, int]) -> list[dict[str, Any]]:
    """As COCO and its kin list them."""
    return [
        {"id": number, "name": name, "supercategory": NO_CATEGORY}
        for name, number in sorted(categories.items(), key=lambda item: item[1])
    ]


def box_xywh_px(row: Mapping[str, Any]) -> list[float]:
    """COCO's box of a mask row that is not empty."""
    box = row["box"]
    return [box["x0"], box["y0"], box["x1"] - box["x0"], box["y1"] - box["y0"]]
