"""Statistics of paired comparisons: arrays in, numbers out, with numpy and scipy alone.

`contrasts` estimates, `resampling` permutes, `multiplicity` corrects, `power` plans.
"""
