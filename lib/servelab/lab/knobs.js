/* Sliders over a picture. Each says its name and its value (not its place among the values), to the eye and to a
   screen reader; the picture has its words as its alternative. */

export default { render };

function render({ model, el }) {
  const box = document.createElement("div");
  box.className = "servelab-knobs";
  const picture = document.createElement("img");
  model.get("sliders").forEach(({ name, values }, which) => box.append(slider(model, name, values, which)));
  box.append(picture);
  el.append(box);

  let address = "";
  const show = () => {
    URL.revokeObjectURL(address);
    address = URL.createObjectURL(new Blob([model.get("picture")], { type: "image/png" }));
    picture.src = address;
    picture.alt = model.get("words");
  };
  model.on("change:picture", show);
  show();
  return () => URL.revokeObjectURL(address);
}

function slider(model, name, values, which) {
  const label = document.createElement("label");
  const handle = Object.assign(document.createElement("input"), { type: "range", min: 0, max: values.length - 1 });
  const value = document.createElement("output");
  const show = () => {
    value.textContent = values[handle.value];
    handle.setAttribute("aria-valuetext", values[handle.value]);
  };
  const follow = () => {
    handle.value = model.get("places")[which];
    show();
  };
  label.append(Object.assign(document.createElement("span"), { textContent: name }), handle, value);
  handle.addEventListener("input", show);
  handle.addEventListener("change", () => {
    model.set("places", model.get("places").with(which, Number(handle.value)));
    model.save_changes();
  });
  // For JupyterLab the arrows go to another cell.
  handle.addEventListener("keydown", (event) => {
    if (event.key.startsWith("Arrow") || ["Home", "End", "PageUp", "PageDown"].includes(event.key)) event.stopPropagation();
  });
  model.on("change:places", follow);
  follow();
  return label;
}
