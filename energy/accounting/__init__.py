"""From ledgers to the account of a run: joules by device, phase and attempt, with their intervals."""
