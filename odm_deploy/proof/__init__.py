"""Evidence that a runtime computes what the reference computes.

verify            the whole proof: the graph, layer by layer, end to end, golden outputs
reference         the model.pt that a bundle is held against, in float32 and float64, and with jittered roundings
lowered_again     the graph against what the model.pt lowers to (other_wiring: one of another version)
parity            end to end: reference, noise floor and runtime on the same images
parity_report     what was found, and what decides whether that is a yes (parity_text: the same for people,
                  visibility: whether they see it)
teacher_forced_layers  every layer's codes (teacher_forcing: the graph cut open)
layer_parity      one layer's flips, and whether rounding explains them
golden            golden outputs of exact models (bundle.golden: the file)
evaluation        PSNR and SSIM over a benchmark set (metrics: of one image)
stress_images     images on which programs differ sooner than on photos
"""
