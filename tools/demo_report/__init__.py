"""docs/bench-demo.md: measured, computed and written by ``python -m tools.demo_report.report``."""
