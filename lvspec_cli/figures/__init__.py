"""Figures computed from texts and counts of answers: fidelity, speed, intervals, audits."""
