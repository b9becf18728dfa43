"""Interventions: recipes in the plan, edits at run time. `LOCI` names the loci, `Recipe` what a plan row
stores."""
