"""``asr info``: what a model folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from asr.bundle import Bundle, load_bundle
from asr.cli.console import put


def info(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a model folder holds, after checking that it is whole.

    Examples:

    \b
      asr info exp/model
      asr info exp/model --json | jq .parameters
    """
    from asr.recognizer import Recognizer

    bundle = load_bundle(model)
    Recognizer.from_bundle(bundle)  # says what of the configuration no model can have
    facts = describe(bundle)
    put(json.dumps(facts, ensure_ascii=False) if as_json else _as_text(facts))


def describe(bundle: Bundle) -> dict[str, Any]:
    """The facts: family, size, tokenizer and its classes, parts, digests and the whole configuration."""
    from lm.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(bundle.tokenizer_path)
    parts = sorted(str(p.relative_to(bundle.folder)) for p in bundle.folder.rglob("*") if p.is_file())
    rest = {k: v for k, v in bundle.config.items() if k not in ("format", "family", "sha256")}
    return {
        "model": str(bundle.folder),
        "family": bundle.config["family"],
        "format": bundle.config["format"],
        "parameters": sum(t.numel() for t in bundle.tensors.values()),
        "tensors": len(bundle.tensors),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in bundle.tensors.values()}),
        "tokens": tokenizer.vocab_size,
        "classes": list(tokenizer.classes),
        "files": parts,
        "sha256": bundle.config["sha256"],
        "config": rest,
    }


def _as_text(facts: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(
        {**facts, "parameters": f"{facts['parameters']:,}", "dtypes": ", ".join(facts["dtypes"])},
        sort_keys=False,
        allow_unicode=True,
    )
    return text.rstrip("\n")
