mod claude;
