/* A question's form in a notebook. Python writes the form (it is also what pages without a kernel show);
   this binds it to the guess: one Tab stop for a group of choices, and arrows move within it. */

export default { render };

const OURS = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", " ", "Enter"];

function render({ model, el }) {
  el.innerHTML = model.get("form");
  const fieldset = el.querySelector("fieldset");
  const fields = [...fieldset.querySelectorAll("input")];
  const group = `guess-${Math.random()}`; // two views of one question are two groups
  for (const field of fields) field.name = group;

  const show = () => {
    const guess = model.get("value");
    for (const field of fields) {
      if (field.type === "radio") field.checked = field.value === guess;
      else field.value = guess;
    }
    fieldset.disabled = model.get("settled");
    fieldset.querySelector("[role=status]").textContent = model.get("note");
  };
  fieldset.addEventListener("change", (event) => {
    model.set("value", event.target.value);
    model.save_changes();
  });
  // JupyterLab takes plain keys for commands ("x" cuts the cell): here they were not meant so.
  fieldset.addEventListener("keydown", (event) => {
    const plain = !event.ctrlKey && !event.metaKey && !event.altKey && !event.shiftKey;
    if (plain && (event.key.length === 1 || OURS.includes(event.key))) event.stopPropagation();
  });
  model.on("change:value change:settled change:note", show);
  show();
}
