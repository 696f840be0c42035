"""Open-vocabulary detection: proposals in, named and scored boxes out."""
