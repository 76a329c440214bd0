"""Responders: models that answer IMHI's questions, trained on the released answers."""
