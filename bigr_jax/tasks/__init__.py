"""Whole methods that several papers share: the parts around the idea, ready to train."""
