"""Judges heads: scorers write numbers, policies turn numbers into selections."""
