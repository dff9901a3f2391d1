"""The language-model head of an encoder: what makes logits of words out of its hidden states.

It is transformers' own for the architecture (``AutoModelForMaskedLM``) without the encoder under it and without the last product: for a BERT
a linear layer, its activation and a layer norm (Devlin et al. 2019), for others as they were pre-trained. The last product is with the token
embeddings of the encoder that is tuned, where the architecture ties them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luthier.core.errors import MismatchError, UnsupportedError
from luthier.models.load import LoadedModel, quiet_transformers
from luthier.models.weights import read_tensors, write_tensors

FILE = "lm_head.safetensors"


class _Given(nn.Module):
    """Stands where the encoder was, and gives the hidden states that it is given."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=inputs_embeds)


class MaskedHead(nn.Module):
    """``forward`` makes features (places, width) of hidden states; their product with ``weight``, plus ``bias``, are logits. ``own``: its weights
    come from files, else they are random."""

    def __init__(self, whole: Any, *, own: bool) -> None:
        super().__init__()
        decoder = whole.get_output_embeddings()
        self.own = own
        self.bias: nn.Parameter | None = decoder.bias
        self.untied: nn.Parameter | None = None if whole.config.tie_word_embeddings else decoder.weight
        setattr(whole, whole.base_model_prefix, _Given())
        for parent in list(whole.modules()):
            for name, child in list(parent.named_children()):
                if child is decoder:
                    setattr(parent, name, nn.Identity())
        self.whole = whole

    def forward(self, hidden: Tensor) -> Tensor:
        """Features of hidden states, both (places, width)."""
        out: Tensor = self.whole(inputs_embeds=hidden[None]).logits
        return out[0]

    def weight(self, body: Any) -> Tensor:
        """The matrix of the last product (vocabulary, width); ``body`` is the encoder."""
        out: Tensor = body.get_input_embeddings().weight if self.untied is None else self.untied
        return out

    def save(self, folder: Path) -> None:
        """Write its own weights, those that it does not share with the encoder."""
        write_tensors(folder / FILE, {name: parameter.data for name, parameter in self.named_parameters()})

    def read(self, path: Path) -> None:
        """Inverse of ``save``. Raises MismatchError when the file is of another head."""
        found = read_tensors(path)
        mine = dict(self.named_parameters())
        if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in mine.items()}:
            raise MismatchError(f"{path}: does not fit the encoder's language-model head")
        for name, parameter in mine.items():
            parameter.data.copy_(found[name])
        self.own = True


def masked_head(model: LoadedModel) -> MaskedHead:
    """The head of an encoder: the one that tuning left beside it, else the base's own, else a new one with random weights.

    Raises UnsupportedError for an architecture that transformers has no such head for.
    """
    import transformers

    sketched = model.device.type == "meta"
    try:
        with quiet_transformers():
            if sketched:
                config = transformers.AutoConfig.from_pretrained(str(model.base_folder), local_files_only=True)
                with model.device:
                    whole, missing = transformers.AutoModelForMaskedLM.from_config(config), []
            else:
                whole, report = transformers.AutoModelForMaskedLM.from_pretrained(
                    str(model.base_folder),
                    dtype=model.dtype,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                )
                missing = [k for k in report["missing_keys"] if not k.startswith(f"{whole.base_model_prefix}.")]
    except ValueError as error:
        raise UnsupportedError(
            f"masked_lm needs an encoder with a language-model head; transformers has none for {model.record.name}"
        ) from error
    head = MaskedHead(whole, own=not missing).to(model.device, model.dtype)
    if not sketched and (model.folder / FILE).exists():
        head.read(model.folder / FILE)
    return head
