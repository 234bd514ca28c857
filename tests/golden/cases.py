"""How each golden method is called: CASES maps its name to function(inputs, hyper).

`inputs` has the file's arrays as attributes, without `in_`; `hyper` is its dict of
hyperparameters. The function returns `out`, or a dict of `out` and `out_X`. It adapts shapes,
reductions and conventions and leaves the numbers to distill_jax.
"""

import dataset_kernel_cases
import dataset_matching_cases
import diffusion_metric_cases
import diffusion_sampling_cases
import diffusion_schedule_cases
import diffusion_score_cases
import diffusion_trajectory_cases
import llm_cross_tokenizer_cases
import llm_divergence_cases
import llm_policy_cases
import llm_preference_cases
import llm_sparse_cases

CASES = {
  **dataset_kernel_cases.CASES,
  **dataset_matching_cases.CASES,
  **diffusion_metric_cases.CASES,
  **diffusion_sampling_cases.CASES,
  **diffusion_schedule_cases.CASES,
  **diffusion_score_cases.CASES,
  **diffusion_trajectory_cases.CASES,
  **llm_cross_tokenizer_cases.CASES,
  **llm_divergence_cases.CASES,
  **llm_policy_cases.CASES,
  **llm_preference_cases.CASES,
  **llm_sparse_cases.CASES,
}

NOT_YET: dict[str, str] = {}  # name: why it is still missing
DEVIATES: dict[str, str] = {  # name: one line why there is no function of ours
  "taid_repo_adaptive_kl": "applies a mask in sorted order to unsorted gaps; see adaptive_kl.py",
}
