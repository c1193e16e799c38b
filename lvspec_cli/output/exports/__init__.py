"""Records in the formats that others read. ``export.export_records`` is the way in."""
