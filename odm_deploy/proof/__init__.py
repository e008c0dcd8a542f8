"""Evidence that a runtime computes what the reference computes.

verify            the whole proof: layer by layer, end to end, golden outputs
reference         the model.pt that a bundle is held against, in float32 and float64, and with jittered roundings
parity            end to end: reference, noise floor and runtime on the same images
parity_report     what was found, and what decides whether that is a yes (parity_text: the same for people)
layers            every layer's codes, teacher-forced (teacher_forcing: the graph cut open)
layer_parity      one layer's flips, and whether rounding explains them
golden            golden outputs of exact models (bundle.golden: the file)
evaluation        PSNR and SSIM over a benchmark set (metrics: of one image)
stress_images     images on which programs differ sooner than on photos
"""
