"""Knowledge distillation: what is transferred (knowledge) and who teaches whom (schemes)."""
