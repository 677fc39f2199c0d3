/**
 * Streams a chat answer to standard output as it is written.
 *
 *     npx tsx examples/stream.ts --model smollm2-135m-instruct "Why is the sky blue?"
 */

import { parseArgs } from "node:util";
import { AimassError, FinishReason, GenerationClient } from "../src/index.js";

const { values, positionals } = parseArgs({
  options: {
    address: { type: "string", default: "localhost:50051" },
    model: { type: "string", default: "smollm2-135m-instruct" },
    "max-new-tokens": { type: "string", default: "128" },
  },
  allowPositionals: true,
});
const question = positionals.join(" ") || "Explain in two sentences why the sky is blue.";

using client = new GenerationClient({ address: values.address });
const interrupt = new AbortController();
process.once("SIGINT", () => interrupt.abort());

const stream = client.generate(
  {
    model: values.model,
    prompt: { messages: [{ role: "user", content: question }] },
    sampling: { temperature: 0 },
    stopping: { maxNewTokens: Number(values["max-new-tokens"]) },
  },
  { signal: interrupt.signal, timeoutMs: 120_000 },
);

try {
  for await (const delta of stream) process.stdout.write(delta.text);
  process.stdout.write("\n");
  const { reason, usage, timings } = stream.finish ?? {};
  console.error(
    `${FinishReason[reason ?? 0]}: ${usage?.outputTokens} tokens, first after ${timings?.timeToFirstTokenMs.toFixed(0)} ms`,
  );
} catch (error) {
  if (!(error instanceof AimassError)) throw error;
  console.error(error.message);
  process.exitCode = 1;
}
