"""Checks of everything on a GPU against the CPU; ``bash scripts/verify_gpu.sh`` runs them."""
