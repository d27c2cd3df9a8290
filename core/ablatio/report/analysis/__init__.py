"""From runs to arms, comparisons, findings and a verdict."""
