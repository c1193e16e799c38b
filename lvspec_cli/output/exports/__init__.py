"""Exports of records in formats of other programs. The entry point is ``export.export_records``."""
