// OpenAI's client for Node against the OpenAI routes: models, chat (whole, streamed, cut off),
// completions, embeddings, an unknown model.
//
// usage: node openai_node.mjs DATA_URL CHAT_MODEL QUESTION WANTED ENCODER

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { cwd } from "node:process";
import { join } from "node:path";

// The package is where the process was started, not beside this file.
const { default: OpenAI } = createRequire(join(cwd(), "here.js"))("openai");

const [url, model, question, wanted, encoder] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: 0 });

const names = [];
for await (const { id } of client.models.list()) names.push(id);
assert(names.includes(model) && names.includes(encoder), names.join());

const asked = { model, messages: [{ role: "user", content: question }], temperature: 0, max_tokens: 64 };
const whole = await client.chat.completions.create(asked);
const said = whole.choices[0].message.content;
assert(said.includes(wanted), said);
assert.equal(whole.choices[0].finish_reason, "stop");

let streamed = "";
let usage;
const stream = await client.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, said);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);

// A client that leaves in the middle; the next one is answered as if nothing had been.
const left = await client.chat.completions.create({ ...asked, stream: true, max_tokens: 200 });
for await (const _ of left) break;
const again = await client.chat.completions.create(asked);
assert.equal(again.choices[0].message.content, said);

const completion = await client.completions.create({ model, prompt: "Our shop", max_tokens: 8, temperature: 0 });
assert(completion.choices[0].text.length > 0);

const { data } = await client.embeddings.create({ model: encoder, input: ["a parcel is late", "my package has not come"] });
const [a, b] = data.map((entry) => entry.embedding);
const product = a.reduce((sum, x, index) => sum + x * b[index], 0);
assert(product > 0.3, `${product}`);

await assert.rejects(
  client.chat.completions.create({ ...asked, model: "no/such/model" }),
  (error) => error.status === 404 && error.code === "model_not_found",
);
console.log("all as expected");
