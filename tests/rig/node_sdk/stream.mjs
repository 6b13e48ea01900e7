// Sends chat requests with the official SDK, one for each line of its input, and prints a line of JSON for each with
// what the SDK made of the answer.
//
//     {"mode": "stream" or "create", "request": {"model": ..., "messages": [...]}, "baseURL": ..., "apiKey": ...}
import { createInterface } from "node:readline";
import OpenAI from "openai";

async function streamed(client, request, seen) {
  const stream = client.chat.completions.stream({ stream_options: { include_usage: true }, ...request });
  stream.on("content", (piece) => seen.pieces.push(piece));
  stream.on("chunk", () => (seen.chunks += 1));
  return stream.finalChatCompletion();
}

function answer(completion) {
  const [choice] = completion.choices;
  const calls = choice.message.tool_calls ?? [];
  return {
    text: choice.message.content,
    finish_reason: choice.finish_reason,
    usage: completion.usage ?? null,
    tool_calls: calls.map((call) => ({ id: call.id, name: call.function.name, arguments: call.function.arguments })),
    error: null,
  };
}

function failure(error, seen) {
  const { status = null, code = null, message } = error;
  const known = { type: error.constructor.name, status, code, message };
  return { text: seen.pieces.join(""), finish_reason: null, usage: null, tool_calls: [], error: known };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { mode, request, ...options } = JSON.parse(line);
  const client = new OpenAI({ maxRetries: 0, timeout: 30_000, ...options });
  const seen = { pieces: [], chunks: 0 };
  const asked = mode === "stream" ? streamed(client, request, seen) : client.chat.completions.create(request);
  const said = await asked.then(answer, (error) => failure(error, seen));
  console.log(JSON.stringify({ ...said, ...seen }));
}
