"""What every pool of Ray actors needs: waiting with a deadline, and naming whom one waits for. Knows nothing of
speech."""
