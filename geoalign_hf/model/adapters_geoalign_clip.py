# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""Loading of adapters by transformers, with an error where it would lose weights of the adapter."""


class StrictAdapterMixin:
    """Refuses an adapter of which transformers cannot load every weight.

    `AutoModel.from_pretrained(adapter)` and `load_adapter` only report such weights in the log. DoRA loses
    its magnitudes in this way, and the result is a different model from the one that was trained.
    """

    def load_adapter(self, *args, **kwargs):
        """Load an adapter as every transformers model does.

        Raises:
            ValueError: if a weight in the adapter's file is not used, or one of the adapter is not in it.
        """
        report = super().load_adapter(*args, **kwargs)
        lost = sorted({*report.unexpected_keys, *report.missing_keys})
        if lost:
            raise ValueError(
                f"transformers cannot load {len(lost)} weights of the adapter, among them {lost[0]}, so the "
                "model would differ from the trained one. Load it by "
                "PeftModel.from_pretrained(base_model, adapter), which loads every weight."
            )
        return report
