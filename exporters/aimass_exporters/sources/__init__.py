"""Where weights and texts come from: catalogue, packages, the hub, folders, foreign formats."""
