# SPDX-License-Identifier: Apache-2.0
"""What a model is made of: one dataclass of hyper-parameters for all user encoders."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from seqrec_fast.errors import InputError

__all__ = ["MODELS", "ModelOptions", "option"]

#: every model by the name that the command line and the bundle use
MODELS = ("sasrec", "gru", "lstm", "rnn")


def option(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field that carries its help text (and choices) for the command line."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Hyper-parameters of a user encoder; checked when made.

    Raises:
        InputError: a value is out of range; the message names the option.
    """

    model: str = option("sasrec", "kind of user encoder", MODELS)
    dim: int = option(64, "width of item vectors and user embeddings")
    layers: int | None = option(None, "blocks or recurrent layers (default: 2 for sasrec, else 1)")
    heads: int = option(2, "attention heads (sasrec)")
    feed_forward: int = option(4, "width of the feed-forward layer in multiples of dim (sasrec)")
    hidden: int | None = option(None, "hidden units of a recurrent layer (default: dim)")
    cell_activation: str = option(
        "tanh", "activation of candidate and output in a recurrent cell", ("tanh", "sigmoid")
    )
    dropout: float = option(0.3, "dropout inside the encoder")
    embedding_dropout: float | None = option(None, "dropout of the input (default: dropout)")
    max_length: int = option(
        200, "events of a training window, and the most that sasrec sees of a history"
    )
    tied_output: bool = option(True, "score items with the table that embeds them")
    item_bias: bool = option(False, "add a learned bias to each item's score")
    temperature: float | None = option(
        None, "score by the cosine divided by this (default: by the inner product)"
    )
    interests: int = option(1, "embeddings a user; an item's score is the best of them")

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise InputError(f"model: unknown model {self.model!r}; choose {', '.join(MODELS)}")
        if self.layers is None:
            object.__setattr__(self, "layers", 2 if self.model == "sasrec" else 1)
        if self.hidden is None:
            object.__setattr__(self, "hidden", self.dim)
        if self.embedding_dropout is None:
            object.__setattr__(self, "embedding_dropout", self.dropout)
        for name in ("dim", "layers", "heads", "feed_forward", "hidden", "max_length", "interests"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name}: must be a whole number of at least 1, found {value!r}")
        for name in ("dropout", "embedding_dropout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise InputError(f"{name}: must be at least 0 and below 1, found {value!r}")
        for name in ("tied_output", "item_bias"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}: must be true or false, found {getattr(self, name)!r}")
        value = getattr(self, "temperature")  # noqa: B009  (the type is checked here)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < math.inf):
            raise InputError(f"temperature: must be a number above 0, found {value!r}")
        if self.model == "sasrec" and self.dim % self.heads:
            raise InputError(
                f"heads: {self.heads} heads do not divide dim {self.dim}; choose a divisor of it"
            )
        if self.cell_activation not in ("tanh", "sigmoid"):
            raise InputError(
                f"cell_activation: unknown activation {self.cell_activation!r}; "
                "choose tanh or sigmoid"
            )

    @property
    def depth(self) -> int:
        """``layers``, resolved."""
        assert self.layers is not None
        return self.layers

    @property
    def hidden_size(self) -> int:
        """``hidden``, resolved."""
        assert self.hidden is not None
        return self.hidden

    @property
    def input_dropout(self) -> float:
        """``embedding_dropout``, resolved."""
        assert self.embedding_dropout is not None
        return self.embedding_dropout

    def to_config(self) -> dict[str, Any]:
        """Plain values for ``model.json``."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ModelOptions:
        """Options from ``model.json``; entries of other kinds are passed over.

        Raises:
            InputError: a value is missing or out of range.
        """
        config = {"interests": 1, **config}  # older bundles do not know the name
        names = [f.name for f in fields(cls)]
        missing = [name for name in names if name not in config]
        if missing:
            raise InputError(f"model.json: {missing[0]!r} is missing; the bundle is not complete")
        return cls(**{name: config[name] for name in names})

    def with_values(self, **values: Any) -> ModelOptions:
        """A copy with some values changed."""
        return replace(self, **values)
