"""Floors and fold-in rules that RecBole lacks, one per file."""
