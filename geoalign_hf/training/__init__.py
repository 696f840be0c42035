"""Training, LoRA and few-shot adaptation."""
