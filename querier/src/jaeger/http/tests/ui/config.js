function UIConfig() { return { archiveEnabled: true }; }
