"""Loose speculative decoding: the rule, relevance, the draft and the loop."""
