"""Figures made of answers: fidelity, speed, intervals, audits. Texts and counts in, numbers out."""
