"""The code that ships with a model: it is copied beside the weights and needs only torch and transformers."""
