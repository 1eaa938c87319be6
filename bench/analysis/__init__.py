"""From samples to statements: statistics, decomposition, verdicts. No torch, no device."""
