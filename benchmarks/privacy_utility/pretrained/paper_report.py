"""Results of the reproduction of the paper's tables, from the pieces that are finished."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.privacy_utility.pretrained.paper import (
    CONTROLS,
    DIMENSION,
    NEAREST,
    PLAIN,
    SOFT_PROMPT,
    PaperPiece,
    PaperPlan,
)
from benchmarks.privacy_utility.pretrained.plan import COUNTS
from del_core.evaluation.bootstrap import paired_interval, perplexity_interval, ppl_ratio

__all__ = ["paper_results"]

_Pieces = Mapping[str, Any]


def paper_results(pieces: Path, planned: tuple[PaperPiece, ...], plan: PaperPlan) -> dict[str, Any]:
    """Return the tables and what is missing, from the files of ``pieces``."""
    paths = {piece.file: pieces / f"{piece.file}.json" for piece in planned}
    found = {name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.exists()}
    texts = tuple(dict.fromkeys(piece.text for piece in planned if piece.text is not None))
    return {
        "about": {
            "date": max((one["date"] for one in found.values()), default=None),
            "command": "python -m benchmarks.privacy_utility.pretrained paper --data DIR --work DIR --out DIR",
            "model": "SmolLM2-135M-Instruct",
            "machine": "; ".join(sorted({one["machine"] for one in found.values()})),
            "passages": plan.passages,
            "rows": plan.rows,
            "steps": plan.training.steps,
            "learning_rate": plan.training.learning_rate,
            "batch": plan.training.batch,
            "projection_steps": plan.projection_steps,
            "pieces_done": len(found),
            "pieces_missing": [name for name in paths if name not in found],
        },
        "controls": list(_controls(found, texts)),
        "levels": list(_levels(found, texts, plan)),
        "transfer": list(_transfer(found, texts, plan)),
        "other_levels": list(_other_levels(found, texts, plan)),
        "dims": [_dimension(one) for one in found.values() if one["part"] == DIMENSION],
    }


def _of(
    found: _Pieces, part: str, read: str = COUNTS, level: float | None = None, text: str | None = None
) -> dict[str, Any] | None:
    """Return the finished piece, if it is."""
    one: dict[str, Any] | None = found.get(PaperPiece(part, read, level, text).file)
    return one


def _ppl(losses: list[float]) -> list[float]:
    return perplexity_interval(losses).to_json()


def _ratio(own: list[float], other: list[float]) -> list[float]:
    return paired_interval(ppl_ratio, own, other).to_json()


def _success(rate: Mapping[str, float]) -> list[float]:
    return [rate[key] for key in ("success", "low", "high")]


def _noise(one: Mapping[str, Any]) -> dict[str, Any]:
    noise = one["noise"]
    rates = {name: _success(noise[name]) for name in ("strongest", "map", NEAREST)}
    return {"epsilon": noise["epsilon"], "attack": noise["attack"], **rates}


def _with_soft_prompt(plain: _Pieces, trained: _Pieces | None, text: str) -> dict[str, Any]:
    """Return the perplexity of one text without and with a soft prompt, and their ratio."""
    without = plain["nll"][text]
    here = {"ppl without": _ppl(without)}
    if trained is not None:
        own = trained["nll"][text]
        here |= {"ppl with": _ppl(own), "ratio": _ratio(own, without)}
    return here


def _controls(found: _Pieces, texts: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for text in texts:
        for read in CONTROLS:
            if (plain := _of(found, PLAIN, read)) is not None:
                trained = _of(found, SOFT_PROMPT, read, text=text)
                yield {"text": text, "read": read, **_with_soft_prompt(plain, trained, text)}


def _levels(found: _Pieces, texts: tuple[str, ...], plan: PaperPlan) -> Iterator[dict[str, Any]]:
    """T1 and T2: each text with the soft prompt that was trained on it."""
    for text in texts:
        for level in sorted(plan.levels):
            if (plain := _of(found, PLAIN, level=level)) is not None:
                trained = _of(found, SOFT_PROMPT, level=level, text=text)
                row = {"text": text, "level": level, **_noise(plain), **_with_soft_prompt(plain, trained, text)}
                nothing = _of(found, SOFT_PROMPT, "nothing", text=text)
                if trained is not None and nothing is not None:
                    row["ratio to no prompt"] = _ratio(trained["nll"][text], nothing["nll"][text])
                yield row


def _transfer(found: _Pieces, texts: tuple[str, ...], plan: PaperPlan) -> Iterator[dict[str, Any]]:
    """T6: each text with the soft prompt of another."""
    for level in sorted(plan.levels):
        for source in texts:
            for target in texts:
                moved = _of(found, SOFT_PROMPT, level=level, text=source)
                own = _of(found, SOFT_PROMPT, level=level, text=target)
                plain = _of(found, PLAIN, level=level)
                if source == target or moved is None or plain is None:
                    continue
                row = {"level": level, "trained on": source, "measured on": target}
                row |= _with_soft_prompt(plain, moved, target)
                if own is not None:
                    row["ratio to own"] = _ratio(moved["nll"][target], own["nll"][target])
                yield row


def _other_levels(found: _Pieces, texts: tuple[str, ...], plan: PaperPlan) -> Iterator[dict[str, Any]]:
    """T7: the soft prompt of one level behind the noise of another."""
    levels = sorted(plan.levels)
    for text in texts:
        for measured in levels:
            plain = _of(found, PLAIN, level=measured)
            own = _of(found, SOFT_PROMPT, level=measured, text=text)
            for trained in levels:
                moved = _of(found, SOFT_PROMPT, level=trained, text=text)
                if moved is None or plain is None:
                    continue
                losses = moved["nll"][text] if trained == measured else moved["nll at other levels"][f"{measured:g}"]
                row = {"text": text, "trained at": trained, "measured at": measured, "ppl": _ppl(losses)}
                row["ratio to without"] = _ratio(losses, plain["nll"][text])
                if own is not None and trained != measured:
                    row["ratio to own"] = _ratio(losses, own["nll"][text])
                yield row


def _dimension(one: Mapping[str, Any]) -> dict[str, Any]:
    """T8: one width."""
    return {
        "dim": one["dim"],
        "level": one["level"],
        "bits": one["bits"],
        **_noise(one),
        "ppl projected": one["ppl_projected"],
        "ppl": {text: _ppl(losses) for text, losses in one["nll"].items()},
    }
