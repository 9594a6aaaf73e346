"""Figures: plotly, with colours that colour-blind readers tell apart, and no network needed."""
