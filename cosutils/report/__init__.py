"""How results are said: numbers with intervals, claims and verdicts, figures, progress."""
