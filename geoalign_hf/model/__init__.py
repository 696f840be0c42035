"""The room that ships: these files are copied beside the weights and need torch and transformers alone."""
