"""What every aimass service shares. Knows servers, bundles and devices; knows no task and no model family."""
