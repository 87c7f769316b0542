"""The nets, in plain torch: `net` trains, `serving_net` serves, `backbones` are what knowledge is added to.

The method is LLM4MSR's (Wang et al., CIKM 2024, https://arxiv.org/abs/2406.12529).
"""
