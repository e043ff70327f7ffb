"""What `fintune train` computes, in plain torch, Transformers and PEFT: the method on one page.

    python examples/plain_training.py --config configs/debug.yaml --output_dir output/plain

The prompts, the sampling, the loss, the optimizer and its schedule are those of `fintune train`; the model
reads one example at a time, with its own attention and PEFT's own layers, in fp32. A test
(`tests/training/test_plain_twin.py`) finds that both reach the same weights, to rounding: packing, shared
prefixes and fast layers only make it faster. (With LoRA dropout the two draw other masks.)

Left out, because they are no part of the method: validation, checkpoints, calibration, and the manifest that
`fintune predict` reads. Of a recipe these are not read: class weights, the regression expectation, PiSSA,
DoRA, LoRA+, init_adapter, quantization and mixed precision.
"""

import argparse

import peft
import torch
import transformers
from torch.nn.functional import cross_entropy

from fintune.data.prepare.dataset import prepare
from fintune.data.sampling import quotas, schedule, shares
from fintune.models.base import load_tokenizer, resolve
from fintune.prompts import PromptTemplate
from fintune.recipes import load_recipe
from fintune.training.fit import fitted


def train(recipe, output_dir):
    training, mix, lora = recipe.training, recipe.multi_task, recipe.lora_config

    # Data: every task's training records, each as token ids of a prompt and of its answer (with end of text).
    prepared = prepare(recipe)
    tasks = prepared.task_set()
    tokenizer = load_tokenizer(recipe.base_model.name, recipe.base_model.revision)
    template = PromptTemplate(tokenizer, training.max_length)
    weight = {task.name: mix.task_weights.get(task.name, 1.0) for task in tasks}
    examples = [
        template.example(task, record)
        for task in tasks
        if weight[task.name] > 0
        for record in prepared.records(task.name, "train")
    ]

    # Sampling: the share of each task in an epoch, as whole numbers of examples; then the optimizer steps,
    # each a list of indices into `examples`. The seed alone decides them.
    task_of = [example.task for example in examples]
    sizes = {task.name: task_of.count(task.name) for task in tasks}
    training = fitted(recipe, sizes).training  # with a number for each `auto`
    share = shares(sizes, mix.sampling_strategy, mix.sampling_weights or weight, mix.temperature)
    counts = quotas(share, mix.samples_per_epoch or len(examples))
    per_epoch = {task: count for task, count in counts.items() if count}
    step_size = training.per_device_train_batch_size * training.gradient_accumulation_steps
    steps = schedule(task_of, per_epoch, training.num_train_epochs, step_size, training.seed)
    if training.max_steps > 0:
        steps = steps[: training.max_steps]
    if mix.sampling_strategy == "weighted" and not mix.sampling_weights:
        weight = dict.fromkeys(weight, 1.0)  # the weights decide how often a task is drawn instead

    # Model: the frozen base, W + (alpha / r) · B·A on each target layer. A is drawn from the seed; B is 0.
    base = transformers.AutoModelForCausalLM.from_pretrained(
        resolve(recipe.base_model.name), revision=recipe.base_model.revision, dtype=torch.float32
    )
    torch.manual_seed(training.seed)
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        target_modules=lora.target_modules,
        lora_dropout=lora.lora_dropout,
        use_rslora=lora.use_rslora,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(base, config).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    # Optimizer: AdamW; the learning rate rises over the first steps, then falls as the recipe says.
    optimizer = torch.optim.AdamW(trained, lr=training.learning_rate, weight_decay=training.weight_decay)
    warmup = round(training.warmup_ratio * len(steps)) or training.warmup_steps
    rate = transformers.get_scheduler(training.lr_scheduler_type, optimizer, warmup, len(steps))

    for number, step in enumerate(steps, start=1):
        batch = [examples[i] for i in step]
        total = sum(weight[example.task] for example in batch)
        step_loss = 0.0
        for example in batch:
            ids = torch.tensor([example.prompt_ids + example.completion_ids])  # (1, T)
            # The logits of a position predict the token after it: from the prompt's last to the last but one.
            logits = model(ids).logits[0, len(example.prompt_ids) - 1 : -1]  # (answer, vocabulary)
            nll = cross_entropy(logits, torch.tensor(example.completion_ids))  # mean over the answer's tokens
            loss = weight[example.task] / total * nll  # over the step: Σ w_i · meanNLL_i / Σ w_i
            loss.backward()
            step_loss += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, training.max_grad_norm)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        print(f"step {number}/{len(steps)}: loss {step_loss:.4f}")

    model.save_pretrained(output_dir)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="a recipe, such as configs/debug.yaml")
    parser.add_argument("--output_dir", required=True, help="where the adapter goes")
    arguments = parser.parse_args()
    train(load_recipe(arguments.config), arguments.output_dir)
