"""What is wrong with a whole manifest. Reports and never repairs; opens videos only if told."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflows.manifest import ManifestError, conform_rows, read_pieces
from workflows.manifest_faults import Fault, IntArray, validate_batch
from workflows.rows import VideoRequest, decode_prompts
from workflows.storage import Storage, StorageError

Probe = Callable[[VideoRequest], str | None]  # what the video says against the request

REPEATS_AT_ONCE = 500_000  # ids held as text while looking for repeats, some 100 MB


class ManifestCheck:
    """One reading of a manifest, counting what it sees.

    Memory: a piece of the manifest, and at most 16 bytes a row for finding repeated ids.
    """

    def __init__(
        self,
        uri: str,
        storage: Storage,
        probe: Probe | None = None,
        hash_id: Callable[[str], int] = hash,
    ) -> None:
        self.uri = uri
        self.videos = 0
        self.prompts = 0
        self._storage, self._probe, self._hash_id = storage, probe, hash_id

    def faults(self) -> Iterator[Fault]:
        """Every fault, in the order of rows, repeated ids last. Raises only for a missing file."""
        hashes: list[IntArray] = []
        try:
            for first_row, raw in read_pieces(self.uri, self._storage):
                batch, misfits = conform_rows(raw, first_row)
                self.videos += batch.num_rows
                self.prompts += pc.sum(pc.list_value_length(batch["prompts"])).as_py() or 0
                hashes.append(self._hashes(batch["video_id"]))
                yield from self._faults_of(batch, misfits, first_row)
            yield from self._repeats(hashes)
        except ManifestError as error:
            yield Fault(str(error))

    def _faults_of(
        self, batch: pa.RecordBatch, misfits: list[Fault], first_row: int
    ) -> Iterator[Fault]:
        """Of rows that fit the schema also what they say; of those without fault, the video."""
        bad = {fault.row for fault in misfits}
        said = [fault for fault in validate_batch(batch, first_row) if fault.row not in bad]
        yield from sorted(misfits + said, key=lambda fault: fault.row or 0)
        if self._probe is None:
            return
        bad |= {fault.row for fault in said}
        for row, values in enumerate(batch.to_pylist()):
            if first_row + row not in bad:
                message = self._probe(VideoRequest.from_row(values))
                if message is not None:
                    yield Fault(message, "video_uri", first_row + row, values["video_id"])

    def _hashes(self, ids: pa.Array) -> IntArray:
        return np.fromiter(
            (self._hash_id(video_id) for video_id in ids.drop_null().to_pylist()), np.int64
        )

    def _repeats(self, hashes: list[IntArray]) -> Iterator[Fault]:
        """Ids that stand in two rows. Only ids whose hashes repeat are ever held as text."""
        every = np.concatenate([np.empty(0, np.int64), *hashes])
        hashes.clear()
        every.sort()
        repeated = np.unique(every[1:][every[1:] == every[:-1]])
        for start in range(0, len(repeated), REPEATS_AT_ONCE):
            suspects = repeated[start : start + REPEATS_AT_ONCE]
            first_seen: dict[str, int] = {}
            row = 0
            for _, raw in read_pieces(self.uri, self._storage, ["video_id"]):
                ids = conform_rows(raw, row, ["video_id"])[0]["video_id"]
                known = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False))
                for place in known[np.isin(self._hashes(ids), suspects)].tolist():
                    video_id = ids[place].as_py()
                    first = first_seen.setdefault(video_id, row + place)
                    if first != row + place:
                        yield Fault(
                            f"repeats row {first}; ids are unique",
                            "video_id",
                            row + place,
                            video_id,
                        )
                row += raw.num_rows


def probe_with(storage: Storage) -> Probe:
    """A probe that opens the video and holds the prompts against its size and length."""
    # Here, because the model's package loads torch, which a check without videos can do without.
    from sam2model.prompts import PromptError
    from sam2model.video import Video
    from sam2model.video_source import VideoError

    def probe(request: VideoRequest) -> str | None:
        try:
            with (
                storage.open_video(request.video_uri) as source,
                Video(source, name=request.video_uri) as video,
            ):
                num_frames = video.count_frames()
                for prompt in decode_prompts(request.prompts):
                    prompt.check_inside(num_frames, video.info.height, video.info.width)
        except (VideoError, PromptError, StorageError) as error:
            return str(error)
        return None

    return probe
