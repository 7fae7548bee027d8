// Drives a running `flint serve` by OpenAI's official client for Node, and says what differs from the API reference.
//
//     npm install openai
//     flint serve tiny=MODEL --embed minilm=ENCODER --port 8080
//     node tools/openai_conformance.mjs http://127.0.0.1:8080/v1 tiny [minilm]
//
// `OPENAI_API_KEY` is the key, if the server has any. Ends with 1 if a check fails.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, model, encoder] = process.argv.slice(2);
if (!model) {
  console.error("usage: node openai_conformance.mjs URL MODEL [ENCODER]");
  process.exit(2);
}
const client = new OpenAI({ baseURL: url, apiKey: process.env.OPENAI_API_KEY ?? "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Tell me of a cat." }];
const chat = (more) => client.chat.completions.create({ model, messages, ...more });

/** The call fails with this status and names this field. */
async function refused(status, param, call, code) {
  try {
    await call();
  } catch (error) {
    assert.equal(error.status, status);
    assert.equal(error.param, param);
    if (code) assert.equal(error.code, code);
    return;
  }
  assert.fail(`it was answered, though ${param} cannot be`);
}

const checks = {
  async "models list and single"() {
    const ids = [];
    for await (const one of client.models.list()) ids.push(one.id);
    assert.ok(ids.includes(model));
    assert.equal((await client.models.retrieve(model)).id, model);
    await refused(404, "model", () => client.models.retrieve("no-such-model"), "model_not_found");
  },

  async "chat: a stream equals the whole"() {
    const whole = await chat({ max_tokens: 24, seed: 3 });
    let text = "";
    let reason;
    for await (const chunk of await chat({ max_tokens: 24, seed: 3, stream: true })) {
      assert.equal(chunk.object, "chat.completion.chunk");
      text += chunk.choices[0]?.delta?.content ?? "";
      reason = chunk.choices[0]?.finish_reason ?? reason;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(reason, whole.choices[0].finish_reason);
  },

  async "chat: the client's own accumulator takes the stream"() {
    const runner = client.chat.completions.stream({ model, messages, max_tokens: 8, seed: 3 });
    const done = await runner.finalChatCompletion();
    assert.equal(done.choices[0].message.content, (await chat({ max_tokens: 8, seed: 3 })).choices[0].message.content);
  },

  async "completions: echo, usage, several prompts"() {
    const answer = await client.completions.create({ model, prompt: ["Once", "The"], max_tokens: 4, echo: true });
    assert.ok(answer.choices[0].text.startsWith("Once") && answer.choices[1].text.startsWith("The"));
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  },

  async "responses: whole and events"() {
    const body = { model, input: messages[0].content, max_output_tokens: 16, seed: 4 };
    const whole = await client.responses.create(body);
    const names = [];
    let text = "";
    for await (const event of await client.responses.create({ ...body, stream: true })) {
      assert.equal(event.sequence_number, names.length);
      names.push(event.type);
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    assert.equal(text, whole.output_text);
    assert.deepEqual(names.slice(0, 2), ["response.created", "response.in_progress"]);
    assert.ok(["response.completed", "response.incomplete"].includes(names.at(-1)));
    const stream = client.responses.stream(body);
    assert.equal((await stream.finalResponse()).output_text, whole.output_text);
    await refused(400, "previous_response_id", () => client.responses.create({ ...body, previous_response_id: "resp_1" }));
  },

  async "embeddings: the client's base64 and plain numbers"() {
    if (!encoder) return "no encoder was named";
    const packed = await client.embeddings.create({ model: encoder, input: ["one", "two"] });
    const plain = await client.embeddings.create({ model: encoder, input: "two", encoding_format: "float" });
    const numbers = Array.from(new Float32Array(plain.data[0].embedding));
    assert.deepEqual(packed.data[1].embedding, numbers);
    await refused(400, "input", () => client.embeddings.create({ model: encoder, input: [] }));
  },

  async "errors name their field"() {
    for (const [field, value] of [["temperature", -1], ["n", 0], ["max_tokens", 1.5], ["stop", [""]], ["odd", 1]])
      await refused(400, field, () => chat({ [field]: value }));
    await refused(404, "model", () => client.chat.completions.create({ model: "x", messages }), "model_not_found");
  },

  async "who hangs up does no harm"() {
    for (let i = 0; i < 10; i++) {
      const stream = await chat({ max_tokens: 100, stream: true });
      for await (const _ of stream) break;
      stream.controller.abort();
    }
    assert.ok((await chat({ max_tokens: 2 })).choices.length);
  },
};

let failed = 0;
for (const [name, run] of Object.entries(checks)) {
  try {
    const note = await run();
    console.log(`ok      ${name}${note ? ` (left out: ${note})` : ""}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}: ${String(error).slice(0, 300)}`);
  }
}
console.log(`${Object.keys(checks).length - failed} of ${Object.keys(checks).length} checks passed`);
process.exit(failed ? 1 : 0);
