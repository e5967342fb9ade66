"""A clip as bytes: one group of members a clip in a WebDataset tar, all with the clip's key as stem.

========================  ==========================================================================================
member                    holds
========================  ==========================================================================================
``KEY.json``              texts, labels, facts, meta, rates, and the size and byte lengths of the frames below
``KEY.motion.npz``        rgb_times_s, contact, intrinsics, world_from_camera, gaze, hands, exactly
``KEY.rgb.mjpg``          the frames as JPEG (quality 95, 4:4:4), one after another: also a valid MJPEG stream
``KEY.depth.zlib``        the frames as little-endian uint16 millimetres (error at most 0.5 mm; 0 = not known),
                          each pixel minus the one on its left (modulo 65536), each frame deflated by itself
``KEY.segmentation.npz``  ``ids`` uint8, exactly
========================  ==========================================================================================

Frames are separate JPEGs and not H.264 because training takes a few frames of a clip at a time: any frame decodes alone
(about 0.3 ms at 128x128, against 10 to 19 ms for a whole clip of 16 frames in H.264, measured on one core), at four to
six times the bytes. Chroma is kept at full resolution: on rendered scenes 4:2:0 blurs the colours of small and thin
things, and costs 10 dB of PSNR. Depth frames are separate for the same reason; the differences, being mostly small, take
0.6 of the bytes that the millimetres themselves take.
"""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from itertools import accumulate
from typing import Any, TypeVar

import cv2
import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from pretrain.clips.schema import Clip, check_content

JPEG_QUALITY = 95
# The largest depth that uint16 millimetres hold. What lies beyond (sky, an empty ray) is stored as not known.
MAX_DEPTH_M = 65.535

JSON_MEMBER = "json"
MOTION_MEMBER = "motion.npz"
RGB_MEMBER = "rgb.mjpg"
DEPTH_MEMBER = "depth.zlib"
SEGMENTATION_MEMBER = "segmentation.npz"

# Where each field of a Clip is stored.
FIELD_MEMBERS: dict[str, str] = {
    "rgb": RGB_MEMBER,
    "rgb_times_s": MOTION_MEMBER,
    "depth": DEPTH_MEMBER,
    "segmentation": SEGMENTATION_MEMBER,
    "labels": JSON_MEMBER,
    "contact": MOTION_MEMBER,
    "intrinsics": MOTION_MEMBER,
    "world_from_camera": MOTION_MEMBER,
    "gaze": MOTION_MEMBER,
    "hands": MOTION_MEMBER,
    "narration": JSON_MEMBER,
    "captions": JSON_MEMBER,
    "facts": JSON_MEMBER,
    "meta": JSON_MEMBER,
}
# Short names for fields that are mostly read together.
FIELD_GROUPS: dict[str, tuple[str, ...]] = {
    "text": ("labels", "narration", "captions", "facts", "meta"),
    "camera": ("intrinsics", "world_from_camera"),
}
_Decoded = TypeVar("_Decoded")
_FRAME_FIELDS = ("rgb", "rgb_times_s", "depth", "segmentation", "contact")


def resolve_fields(fields: Sequence[str]) -> tuple[str, ...]:
    """Replaces groups by their fields, in the order of ``FIELD_MEMBERS``.

    Raises:
        ValueError: a name that is neither a field nor a group, with the nearest valid names.
    """
    if isinstance(fields, str):
        raise ValueError(f"fields must be a sequence of names, got the string {fields!r}; write ({fields!r},)")
    names = [*FIELD_MEMBERS, *FIELD_GROUPS]
    chosen: set[str] = set()
    for name in fields:
        if name not in names:
            close = get_close_matches(str(name), names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"unknown clip field {name!r}: {hint}fields are {', '.join(names)}")
        chosen.update(FIELD_GROUPS.get(name, (name,)))
    return tuple(name for name in FIELD_MEMBERS if name in chosen)


def encode_clip(clip: Clip) -> dict[str, bytes]:
    """The members of a clip, by name without the key, in the order in which they are stored. Deterministic.

    Raises:
        ValueError: the clip's content is wrong (see :func:`pretrain.clips.schema.check_content`).
    """
    check_content(clip)
    members: dict[str, bytes] = {}
    header: dict[str, Any] = {
        "camera_hz": float(clip.camera_hz),
        "captions": list(clip.captions),
        "facts": list(clip.facts),
        "gaze_hz": float(clip.gaze_hz),
        "labels": {str(id_): name for id_, name in sorted(clip.labels.items())},
        "meta": clip.meta,
        "narration": clip.narration,
    }
    # Only where there are hands: so a clip without them keeps the bytes that it had before there was such a field.
    if clip.hands is not None:
        header["hands_hz"] = float(clip.hands_hz)
    motion = {
        name: array
        for name, member in FIELD_MEMBERS.items()
        if member == MOTION_MEMBER and (array := getattr(clip, name)) is not None
    }
    if motion:
        members[MOTION_MEMBER] = _npz(motion)
    if clip.rgb is not None:
        frames = [_encode_jpeg(frame) for frame in clip.rgb]
        header["rgb_frame_bytes"] = [len(frame) for frame in frames]
        members[RGB_MEMBER] = b"".join(frames)
    if clip.depth is not None:
        frames = [zlib.compress(frame.tobytes(), 6) for frame in _row_differences(depth_to_mm(clip.depth))]
        header["depth_size"] = list(clip.depth.shape[1:])
        header["depth_frame_bytes"] = [len(frame) for frame in frames]
        members[DEPTH_MEMBER] = b"".join(frames)
    if clip.segmentation is not None:
        members[SEGMENTATION_MEMBER] = _npz({"ids": clip.segmentation})
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return {JSON_MEMBER: text.encode(), **members}


def decode_clip(
    key: str,
    read_member: Callable[[str], bytes],
    member_names: Sequence[str],
    fields: Sequence[str] | None = None,
    frames: Sequence[int] | None = None,
    missing_ok: bool = False,
) -> Clip:
    """Decodes the asked fields of a clip, and nothing else.

    Args:
        key: the clip's key.
        read_member: returns the bytes of a member, by its name without the key.
        member_names: the members that this clip has.
        fields: names of fields or groups; None = all that the clip has.
        frames: which video frames to decode; None = all. The times and contacts are taken at the same frames.
        missing_ok: an asked field that the clip does not have stays None.

    Raises:
        ValueError: a damaged member, naming it; an unknown field; a field or frame that this clip does not have.
    """
    asked = tuple(FIELD_MEMBERS) if fields is None else resolve_fields(fields)
    header = _decode_member(key, JSON_MEMBER, read_member, _decode_header)
    motion: dict[str, np.ndarray] = {}
    if any(FIELD_MEMBERS[name] == MOTION_MEMBER for name in asked) and MOTION_MEMBER in member_names:
        motion = _decode_member(key, MOTION_MEMBER, read_member, lambda data: _load_npz(data, asked))

    stored = {name for name, member in FIELD_MEMBERS.items() if member in member_names and member != MOTION_MEMBER}
    if fields is not None and not missing_ok:
        missing = [name for name in asked if name not in stored and name not in motion]
        if missing:
            if MOTION_MEMBER in member_names:
                stored.update(_decode_member(key, MOTION_MEMBER, read_member, _load_npz))
            has = sorted(stored)
            raise ValueError(f"clip {key!r} has no {', '.join(missing)}; of what was read it has {', '.join(has)}")
    values: dict[str, Any] = {"camera_hz": header["camera_hz"], "gaze_hz": header["gaze_hz"]}
    if "hands_hz" in header:
        values["hands_hz"] = header["hands_hz"]
    for name in asked:
        if name in motion:
            array = motion[name]
            values[name] = _take(key, array, frames) if name in _FRAME_FIELDS else array
    if "rgb" in asked and "rgb" in stored:
        values["rgb"] = _decode_member(
            key, RGB_MEMBER, read_member, lambda data: _decode_rgb(key, data, header, frames)
        )
    if "depth" in asked and "depth" in stored:
        values["depth"] = _decode_member(
            key, DEPTH_MEMBER, read_member, lambda data: _decode_depth(key, data, header, frames)
        )
    if "segmentation" in asked and "segmentation" in stored:
        ids = _decode_member(key, SEGMENTATION_MEMBER, read_member, lambda data: _load_npz(data)["ids"])
        values["segmentation"] = _take(key, ids, frames)
    for name in FIELD_GROUPS["text"]:
        if name in asked:
            values[name] = header[name]
    return Clip(key=key, **values)


def depth_to_mm(depth: Float32[np.ndarray, "T H W"]) -> UInt16[np.ndarray, "T H W"]:
    """Metres to whole millimetres. What is beyond ``MAX_DEPTH_M`` becomes 0, not known."""
    depth_mm = np.rint(depth.astype(np.float64) * 1000)
    return np.where(depth_mm <= 65535, depth_mm, 0).astype(np.uint16)


def depth_from_mm(depth_mm: UInt16[np.ndarray, "T H W"]) -> Float32[np.ndarray, "T H W"]:
    """Whole millimetres to metres."""
    return depth_mm.astype(np.float32) * np.float32(0.001)


def _encode_jpeg(frame: UInt8[np.ndarray, "H W 3"]) -> bytes:
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        JPEG_QUALITY,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)
    assert ok, "OpenCV could not encode a JPEG"
    return data.tobytes()


def _row_differences(depth_mm: UInt16[np.ndarray, "T H W"]) -> UInt16[np.ndarray, "T H W"]:
    differences = np.diff(depth_mm, axis=2, prepend=np.zeros_like(depth_mm[:, :, :1]))
    return differences.astype("<u2")


def _decode_rgb(
    key: str, data: bytes, header: dict[str, Any], frames: Sequence[int] | None
) -> UInt8[np.ndarray, "T H W 3"]:
    images: list[np.ndarray] = []
    for part in _split_frames(key, data, header["rgb_frame_bytes"], frames):
        image = cv2.imdecode(np.frombuffer(part, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise ValueError("a frame is not a JPEG")
        images.append(image)
    return np.stack(images)


def _decode_depth(
    key: str, data: bytes, header: dict[str, Any], frames: Sequence[int] | None
) -> Float32[np.ndarray, "T H W"]:
    parts = _split_frames(key, data, header["depth_frame_bytes"], frames)
    differences = np.stack([np.frombuffer(zlib.decompress(part), "<u2") for part in parts])
    return depth_from_mm(np.cumsum(differences.reshape(-1, *header["depth_size"]), axis=2, dtype=np.uint16))


def _split_frames(key: str, data: bytes, frame_bytes: list[int], frames: Sequence[int] | None) -> list[memoryview]:
    """The bytes of each asked frame in a member that holds them one after another."""
    if sum(frame_bytes) != len(data):
        raise ValueError(f"{len(data)} bytes, expected {sum(frame_bytes)}")
    ends = list(accumulate(frame_bytes))
    chosen = range(len(ends)) if frames is None else _check_frames(key, frames, len(ends))
    view = memoryview(data)
    return [view[ends[index] - frame_bytes[index] : ends[index]] for index in chosen]


def _decode_header(data: bytes) -> dict[str, Any]:
    header = json.loads(data)
    header["labels"] = {int(id_): name for id_, name in header["labels"].items()}
    header["captions"] = tuple(header["captions"])
    header["facts"] = tuple(header["facts"])
    return header


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    # numpy writes the members of an npz with a fixed date, so equal arrays give equal bytes.
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _load_npz(data: bytes, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz; only those of ``names``, if given, are inflated (hands are larger than all the others)."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files if names is None or name in names}


def _decode_member(
    key: str, name: str, read_member: Callable[[str], bytes], decode: Callable[[bytes], _Decoded]
) -> _Decoded:
    data = read_member(name)
    try:
        return decode(data)
    except FrameIndexError:
        raise
    except (ValueError, KeyError, TypeError, EOFError, OSError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedMemberError(f"member {key}.{name} is damaged ({type(error).__name__}: {error})") from None


def _take(key: str, array: np.ndarray, frames: Sequence[int] | None) -> np.ndarray:
    return array if frames is None else array[_check_frames(key, frames, len(array))]


def _check_frames(key: str, frames: Sequence[int], n_frames: int) -> list[int]:
    wrong = [int(index) for index in frames if not 0 <= index < n_frames]
    if wrong or len(frames) == 0:
        raise FrameIndexError(f"clip {key!r}: frames {wrong or '()'} asked, it has frames 0 to {n_frames - 1}")
    return [int(index) for index in frames]


class DamagedMemberError(ValueError):
    """A member of a shard cannot be decoded."""


class FrameIndexError(ValueError):
    """A frame was asked that the clip does not have."""
