"""``egoarm clips info``: what a clip store holds, whether it is whole, and a picture of some of its clips."""

import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from pretrain.clips.contact_sheet import draw_contact_sheet
from pretrain.clips.schema import LEFT_HAND_ID, RIGHT_HAND_ID, Clip
from pretrain.clips.skipping import SKIPPED_NAME
from pretrain.clips.store import ClipStore, open_store

_NOT_STATED = "(not stated)"


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Settings of ``egoarm clips info``.

    Attributes:
        path: directory of the store.
        contact_sheet: where the picture goes; empty = ``contact_sheet.png`` in the store.
        clips: clips in the picture, spread over the store; 0 = no picture.
        frames: frames of each clip in the picture.
        verify: compare the sha256 of every shard with the manifest.
    """

    path: str
    contact_sheet: str = ""
    clips: int = 6
    frames: int = 5
    verify: bool = True

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("the store is missing: egoarm clips info DIR")
        if self.clips < 0:
            raise ValueError(f"clips={self.clips}: expected 0 or more")
        if self.frames < 1:
            raise ValueError(f"frames={self.frames}: expected 1 or more")

    @property
    def contact_sheet_path(self) -> Path:
        return Path(self.contact_sheet) if self.contact_sheet else Path(self.path) / "contact_sheet.png"


def run_info(config: InfoConfig) -> None:
    """Prints the description, checks the shards and writes the picture.

    Raises:
        FileNotFoundError: no such store.
        ValueError: a damaged store, naming the shard and the remedy.
    """
    store = open_store(config.path)
    # soft_wrap: a path or a sha must come out whole when the output goes to a file.
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = 120
    manifest, totals = store.manifest, store.manifest["totals"]
    console.print(
        f"{store.path}: {totals['clips']} {manifest['kind']} clips, {_duration(totals['duration_s'])}, "
        f"{totals['shards']} shards, {totals['bytes'] / 1e6:.1f} MB "
        f"({totals['bytes'] / max(totals['clips'], 1) / 1e3:.0f} kB a clip), seed {manifest['seed']}",
        markup=False,
    )
    console.print(f"manifest sha256 {store.manifest_sha256}", markup=False)
    if config.verify:
        store.verify()
        console.print(f"checked: the sha256 of all {totals['shards']} shards is the manifest's")
    if "skipped" in manifest:
        console.print(skipped_table(manifest["skipped"], store.path))
    if "dropped" in manifest:
        console.print(dropped_table(manifest["dropped"]))
    console.print(_modalities_table(store))
    _print_texts(store, console)
    if config.clips:
        chosen = np.unique(np.linspace(0, len(store) - 1, config.clips).round().astype(int)).tolist()
        draw_contact_sheet(
            [store.read(index) for index in chosen],
            config.contact_sheet_path,
            frames=config.frames,
            title=str(store.path),
        )
        console.print(f"contact sheet: {config.contact_sheet_path}", markup=False)


def skipped_table(skipped: dict[str, int], directory: Path) -> Table:
    """Why clips were skipped and how many for each reason."""
    table = Table(
        "skipped because", "clips", title=escape(f"skipped: see {directory / SKIPPED_NAME}"), title_justify="left"
    )
    for reason, count in skipped.items():
        table.add_row(escape(reason), str(count))
    table.add_row("all reasons", str(sum(skipped.values())))
    return table


def dropped_table(dropped: dict[str, int]) -> Table:
    """Which modality clips lack and why, and how many."""
    table = Table("clips without", "because", "clips")
    for name, count in dropped.items():
        modality, _, reason = name.partition(": ")
        table.add_row(escape(modality), escape(reason), str(count))
    return table


def _modalities_table(store: ClipStore) -> Table:
    table = Table("modality", "shape", "dtype", "rate", "unit")
    modalities = store.manifest["modalities"]
    times_s = store.read(0, ("rgb_times_s",)).rgb_times_s if "rgb_times_s" in modalities else None
    for name, row in modalities.items():
        hz = row.get("hz")
        if hz is None and times_s is not None and len(times_s) > 1 and name != "intrinsics":
            hz = (len(times_s) - 1) / (times_s[-1] - times_s[0])
        shape = " x ".join(str(length) for length in row["shape"])
        table.add_row(name, shape, row["dtype"], f"{hz:g} Hz" if hz else "", row["unit"])
    return table


def _print_texts(store: ClipStore, console: Console) -> None:
    """What the texts say, over all clips: actions, things, hands in contact, captions, and some narrations."""
    actions: Counter[str] = Counter()
    things: Counter[str] = Counter()
    touched_clips: Counter[str] = Counter()
    n_captions, gaze_known, gaze_all = 0, 0, 0
    hands_known, hands_all = np.zeros(2, int), 0
    narrations: list[str] = []
    fields = ["text", *(name for name in ("contact", "gaze", "hands") if name in store.manifest["modalities"])]
    for index in tqdm(range(len(store)), desc="reading texts", unit="clip", disable=None, leave=False):
        clip = store.read(index, fields, missing_ok=True)
        actions[str(clip.meta.get("action", clip.meta.get("verb", _NOT_STATED)))] += 1
        things.update({name for id_, name in clip.labels.items() if id_ not in (LEFT_HAND_ID, RIGHT_HAND_ID)})
        touched_clips.update(_touching_hands(clip))
        n_captions += len(clip.captions)
        narrations.append(clip.narration)
        if clip.gaze is not None:
            gaze_known += int(np.isfinite(clip.gaze[:, 0]).sum())
            gaze_all += len(clip.gaze)
        if clip.hands is not None:
            hands_known += np.isfinite(clip.hands[:, :, 0, 0]).sum(axis=0)
            hands_all += len(clip.hands)
    if set(actions) != {_NOT_STATED}:
        console.print("actions:")
        width = max(len(name) for name in actions)
        for name, count in actions.most_common():
            bar = "#" * max(1, round(40 * count / max(actions.values())))
            console.print(f"  {name:<{width}} {count:>6} {bar}", markup=False)
    if things:
        common = ", ".join(f"{name} ({count})" for name, count in things.most_common(12))
        more = f" and {len(things) - 12} more" if len(things) > 12 else ""
        console.print(textwrap.fill(f"things: {common}{more}", 110, subsequent_indent="  "), markup=False)
    if "contact" in fields:
        touches = ", ".join(f"{hand} in {touched_clips[hand]} clips" for hand in ("left", "right"))
        console.print(f"hands that touch a thing: {touches}", markup=False)
    console.print(f"captions: {n_captions / len(store):.1f} a clip", markup=False)
    if gaze_all:
        console.print(f"gaze known in {gaze_known / gaze_all:.1%} of its samples")
    if hands_all:
        left, right = hands_known / hands_all
        console.print(f"joints known of the left hand in {left:.1%}, of the right in {right:.1%} of their samples")
    told = [narration for narration in dict.fromkeys(narrations) if narration]
    console.print("narrations:" if told else "narrations: none")
    for narration in told[:5]:
        console.print(f"  {narration}", markup=False)


def _touching_hands(clip: Clip) -> list[str]:
    if clip.contact is None:
        return []
    return [hand for column, hand in enumerate(("left", "right")) if clip.contact[:, column].any()]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
