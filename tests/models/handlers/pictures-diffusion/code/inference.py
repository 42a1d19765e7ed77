"""Pictures from words, in the shape of the scripts that serve Stable Diffusion.

A small stand-in is the pipeline: its pictures depend on the prompt and on the numbers, and
are the same each time.
"""
import base64
import hashlib
from io import BytesIO

from PIL import Image

SIDE = 64


class Output:
    def __init__(self, images):
        self.images = images


class Pipeline:
    """Called as diffusers' StableDiffusionPipeline is."""

    def __call__(self, prompt, num_inference_steps=50, guidance_scale=7.5, num_images_per_prompt=1):
        return Output([self.draw(prompt, num_inference_steps, guidance_scale, n) for n in range(num_images_per_prompt)])

    def draw(self, prompt, steps, scale, index):
        seed = hashlib.sha256("{}|{}|{}|{}".format(prompt, steps, scale, index).encode()).digest()
        image = Image.new("RGB", (SIDE, SIDE))
        image.putdata([tuple(seed[(x // 8 + 3 * (y // 8) + c) % 32] for c in range(3))
                       for y in range(SIDE) for x in range(SIDE)])
        return image


def model_fn(model_dir):
    return Pipeline()


def predict_fn(data, pipe):
    prompt = data.pop("inputs", data)
    num_inference_steps = data.pop("num_inference_steps", 50)
    guidance_scale = data.pop("guidance_scale", 7.5)
    num_images_per_prompt = data.pop("num_images_per_prompt", 4)
    generated_images = pipe(
        prompt,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        num_images_per_prompt=num_images_per_prompt,
    ).images
    encoded_images = []
    for image in generated_images:
        buffered = BytesIO()
        image.save(buffered, format="JPEG")
        encoded_images.append(base64.b64encode(buffered.getvalue()).decode())
    return {"generated_images": encoded_images}
