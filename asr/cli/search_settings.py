"""What a call changes in a model's settings of the search."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.errors import ConfigError

if TYPE_CHECKING:
    from asr.decoding_config import DecodingConfig
    from asr.recognizer import Recognizer

SECOND_PASS = ("weight", "unit", "over", "keep", "end", "internal_weight")
"""Settings of a second pass that there must be."""


def search_changes(
    beam: int | None,
    lm: Path | None,
    lm_weight: float | None,
    settings: Sequence[str],
    settings_file: Path | None = None,
    rescore_lm: Path | None = None,
) -> dict[str, Any]:
    """What the options change in the model's settings of the search.

    Raises:
        ConfigError: a setting that is not ``key=value``, or not known; a file that is no settings.
    """
    from asr.decoding_config import DecodingConfig
    from lm.config import apply_overrides, build_config, read_yaml
    from lm.model_files import model_name

    given = list(settings)
    given += [f"search.beam={beam}"] if beam is not None else []
    given += [f"fusion.lm={json.dumps(model_name(lm))}"] if lm else []
    given += [f"rescoring.lm={json.dumps(model_name(rescore_lm))}"] if rescore_lm else []
    given += [f"fusion.weight={lm_weight}"] if lm_weight is not None else []
    from_file = read_yaml(settings_file) if settings_file else {}
    build_config(DecodingConfig, from_file, str(settings_file))  # errors in it are not those of --set
    return apply_overrides(from_file, given)


def search_options(recognizer: Recognizer, changes: Mapping[str, Any]) -> DecodingConfig:
    """The model's settings with ``changes``, each of which must have a part in the search.

    Raises:
        ConfigError: a setting that is not known or cannot be, or one that would do nothing.
    """
    options = recognizer.decoding.changed(changes, "--set")
    fusion, second = options.fusion, options.rescoring
    scored = bool(second.lm or second.internal_lm)
    for section, keys, used, needed in (
        ("fusion", ("weight", "how", "end"), bool(fusion.lm), "a language model: --lm FILE"),
        ("fusion", ("internal_weight",), fusion.internal != "none", "fusion.internal=ilme or lm"),
        ("rescoring", SECOND_PASS, scored, "a language model: --rescore-lm FILE"),
    ):
        values = changes.get(section) or {}
        idle = [key for key in keys if values.get(key)]
        if idle and not used:
            raise ConfigError(
                f"{section}.{idle[0]}, which does nothing here", needed, "add it, or leave it out"
            )
    if "lm_scale" in changes and not recognizer.family.knows_classes:
        raise ConfigError(
            "lm_scale with a model that has no language model of its own",
            "a factorized model",
            "leave it out",
        )
    return options
