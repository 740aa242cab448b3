// Reads a ScaledObject as JSON, and ends with an error if KEDA would not take it.
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1";

let text = "";
for await (const chunk of process.stdin) text += chunk;
new ScaledObject(JSON.parse(text)).validate();
